"""Why a model answers so: nearest prototypes and samples with their shares, and how sure it is."""
