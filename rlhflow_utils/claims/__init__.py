"""The paper's claims over several seeds, in simulated worlds (chapter 11); the stages are those of the other rooms."""
