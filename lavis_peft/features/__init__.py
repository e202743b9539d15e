"""The vision encoder's outputs, computed once and kept on the disk: `run.feature_cache`.

A cache is a folder that runs and processes share. In it each pair of encoder and image transform has a folder of its
own (`space`), in which the features lie in memory-mapped files (`store`) under the SHA-256 of the picture's file
(`digests`). Before its first epoch a run computes what is missing (`filling`); then its datasets read features instead
of pictures (`use`).
"""
