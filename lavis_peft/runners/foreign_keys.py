"""Keys of a `run` section that aren't the runner's own: others read them, or nobody can."""

#: Run keys that LAVIS's tasks and models read; the runner leaves them alone.
TASK_KEYS = frozenset(
    {
        "anno_files",
        "annotation_file",
        "block_num",
        "cap_max_length",
        "cap_min_length",
        "caption_key",
        "img_ids",
        "inference_method",
        "internal_bsz_fid",
        "k_test",
        "length_penalty",
        "load_gt_from_file",
        "max_len",
        "min_len",
        "num_ans_candidates",
        "num_beams",
        "num_captions",
        "num_captions_fid",
        "num_patches",
        "prompt",
        "ques_files",
        "repetition_penalty",
        "report_metric",
        "sample_id_key",
        "segments",
        "temperature",
        "top_k",
        "top_p",
    }
)
#: Run keys that the start of several processes reads or writes.
PROCESS_KEYS = frozenset(["dist_backend", "dist_url", "distributed", "gpu", "rank", "world_size"])
#: Keys of LAVIS that the plugin's runners can't honour, and why.
REFUSED_KEYS = {
    "train_dataset_ratios": "isn't used by the plugin's runners: training sets are concatenated",
    "lr_layer_decay": "scales the vision encoder's learning rates, and the vision encoder is frozen",
}
#: What the runner that counts epochs can't read, and what the one that counts iterations can't.
ITERATION_KEYS = dict.fromkeys(
    ("max_iters", "iters_per_inner_epoch"),
    "counts iterations, but runner_peft counts epochs (run.max_epoch); runner_peft_iter counts iterations",
)
EPOCH_KEYS = {
    "max_epoch": "counts epochs, but runner_peft_iter counts iterations (run.max_iters); runner_peft counts epochs"
}
