"""Break the code in small ways and count which changes the tests notice: `make mutants N=25`."""
