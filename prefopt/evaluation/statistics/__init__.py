"""Numbers with intervals: the prompt is the unit, and training seeds are a level of their own."""
