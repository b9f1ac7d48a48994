"""The names at the top of a config."""
from __future__ import annotations

# What boxdet reads at the top of a config.
SECTIONS = ('model', 'data', 'optimizer', 'optimizer_config', 'lr_config', 'momentum_config', 'runner', 'total_epochs',
            'checkpoint_config', 'log_config', 'evaluation', 'load_from', 'resume_from', 'auto_resume', 'workflow',
            'custom_hooks', 'custom_imports', 'dist_params', 'log_level', 'fp16', 'work_dir', 'auto_scale_lr', 'seed',
            'deterministic', 'device', 'opencv_num_threads', 'mp_start_method', 'cudnn_benchmark', 'channels_last',
            'find_unused_parameters', 'frozen_modules', 'preflight', 'train_cfg', 'test_cfg', 'test_evaluation',
            'tta_pipeline', 'tta_model', 'allow_idle_overrides')
# Variables that 2.x configs share by habit; nothing reads them.
HABITS = ('dataset_type', 'data_root', 'img_norm_cfg', 'train_pipeline', 'test_pipeline', 'classes', 'norm_cfg',
          'gpu_ids')
