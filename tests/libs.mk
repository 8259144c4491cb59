# Which archives each test program links, besides common/base and the harness. Add a line per test program:
#   LIBS_<name> := ...archives, higher layers first...     EXT_<name> := ...external libraries...
# TESTS lists the programs that `make check` runs, by folder; they are found, not listed.
HARNESS := $(B)/lib/tests_harness.a
$(HARNESS): $(patsubst %.c,$(B)/obj/%.o,$(wildcard tests/harness/*.c))
	@mkdir -p $(@D)
	@rm -f $@
	ar rcs $@ $^

TEST_SRC := $(wildcard tests/*/test_*.c)
TEST_BIN := $(patsubst %.c,$(B)/%,$(TEST_SRC))
test_name = $(notdir $(1))

define test_rule
$(B)/$(1): $(B)/obj/$(1).o $(HARNESS) $(LIBS_$(notdir $(1))) $(BASE)
	@mkdir -p $$(@D)
	$(CC) $(LDFLAGS) -o $$@ $$(filter %.o,$$^) -Wl,--start-group $$(filter %.a,$$^) -Wl,--end-group $(EXT_$(notdir $(1))) $(EXT_BASE) -lcmocka
endef

include $(wildcard tests/*/libs.mk)
$(foreach t,$(TEST_SRC),$(eval $(call test_rule,$(t:.c=))))

# `make T=test_bpe` builds and runs one test program; cmocka's CMOCKA_TEST_FILTER narrows it.
ifneq ($(T),)
all: $(filter %/$(T),$(TEST_BIN))
	$(filter %/$(T),$(TEST_BIN))
endif
