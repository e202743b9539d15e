"""How answers and captions are scored: plain functions of texts, without LAVIS or a model."""
