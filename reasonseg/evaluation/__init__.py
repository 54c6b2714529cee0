"""Metrics, and evaluations that keep a row for each question and can be resumed."""
