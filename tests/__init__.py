"""What the tests share; a regular package, since some installed distributions ship a package of this name."""
