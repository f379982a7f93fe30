"""The probe: what frozen features know about labels and anatomy. A gauge; training reads none."""
