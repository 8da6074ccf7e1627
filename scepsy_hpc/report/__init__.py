"""What a person looks at: tables, plots and one self-contained HTML file."""
