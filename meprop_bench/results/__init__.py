"""Results that outlive the run: versioned rows (`schema`) in a folder that is only ever appended to (`store`)."""
