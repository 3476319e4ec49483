"""What a paper needs of compared runs: tables in LaTeX, and what to cite in BibTeX."""
