"""Small experiments of docs/gallery.md that no other job trains: plain functions and modules."""
