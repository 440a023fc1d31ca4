"""A page on which a user tries models on images of his own."""
