"""How neurons go in a run: the method of this project, and the controls that it has to beat."""
