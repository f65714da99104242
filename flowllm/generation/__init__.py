"""Generation: the composed model, its runs, selection, mutation, infilling and scoring."""
