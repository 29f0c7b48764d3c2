"""The convolutional network and its experiment."""
