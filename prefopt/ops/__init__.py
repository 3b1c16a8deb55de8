"""Pure tensor functions: pairs, masked reductions, log-probs."""
