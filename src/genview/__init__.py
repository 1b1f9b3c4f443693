"""GenView: views made by a pretrained generative model, for self-supervised learning."""

__version__ = "0.1.0"
