"""Fine-tune pre-trained image classifiers and classify whole folders of photos."""

__version__ = "0.1.0"
