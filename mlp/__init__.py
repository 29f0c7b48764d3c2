"""The multilayer perceptron and its experiment."""
