"""A policy as C99 source: one header, one source file, no heap and no library."""
