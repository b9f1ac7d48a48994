"""Where mmengine lives: configuration, the training loop, hooks and distributed start."""
