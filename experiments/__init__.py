"""The evaluations of the book: what is run, what came out, and the tables and figures that are made of it."""
