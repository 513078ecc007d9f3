"""How it is answered: replicates trained together, shared beginnings, outcomes."""
