"""What validate.py does: figures of a model over a data set, on clean and on attacked images."""
