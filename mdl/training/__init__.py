"""The LightningModules of search and retraining, and their parts."""
