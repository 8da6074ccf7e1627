"""How bundles are measured: sweep design, load generator, the array of tasks."""
