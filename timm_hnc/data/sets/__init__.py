"""Data sets that timm has no reader for, and annotations beside their images."""
