"""Where the runs of a sweep are carried out: in processes here, by Ray, or as jobs of Slurm."""
