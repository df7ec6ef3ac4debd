"""One file per command: parse, call one function of a lower floor, print."""
