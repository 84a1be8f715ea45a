"""The papers' tasks: real data, the model, its loss and its measure of quality, each behind one interface."""
