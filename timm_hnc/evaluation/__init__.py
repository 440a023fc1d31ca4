"""What validate.py does: options, accuracy, several labels, attacks and map quality."""
