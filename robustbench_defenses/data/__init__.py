"""One file per source of images."""
