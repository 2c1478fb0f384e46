"""Readers of file formats that several data sets use; none needs TensorFlow, Beam or torch."""
