"""What the job needs on a node besides its own module. On a bad node the folder is empty."""

SCALE = 1.5
