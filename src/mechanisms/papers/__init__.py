"""One recipe per paper, named by its slug: the only place where parts and laboratory meet."""
