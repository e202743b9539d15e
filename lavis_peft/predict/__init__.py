"""Answers to questions about pictures: finding the pictures, reading the questions, asking a model."""
