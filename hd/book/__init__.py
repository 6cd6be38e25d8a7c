"""Strict papermill, building the book, publishing."""
