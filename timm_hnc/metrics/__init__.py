"""Figures of class maps, boxes and labels."""
