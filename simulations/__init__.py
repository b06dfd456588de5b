"""Whole federations on one machine: worlds, data sets, click model, baselines, report."""
