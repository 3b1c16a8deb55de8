"""The thin trainer on transformers.Trainer, its settings, callbacks and reports."""
