"""Metrics, and evaluations that store one row per question and can be resumed."""
