"""Known mistakes of the filter, the observation models and the noise estimators."""
