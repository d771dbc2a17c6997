"""The regimes side by side: runs, baselines, predictions made before, claims with verdicts."""
