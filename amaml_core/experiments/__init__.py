"""The evaluations of the book: parameters in, tidy results out."""
