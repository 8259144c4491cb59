# The simulator: its own main, which speaks TAP (tests/check.mk runs it).
SIM := $(B)/tests/sim/sim
$(SIM): $(patsubst %.c,$(B)/obj/%.o,$(wildcard tests/sim/*.c)) $(ORCH) $(BASE)
	@mkdir -p $(@D)
	$(CC) $(LDFLAGS) -o $@ $(filter %.o,$^) -Wl,--start-group $(filter %.a,$^) -Wl,--end-group $(EXT_BASE)
