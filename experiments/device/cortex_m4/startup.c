/* Reset of a Cortex-M4 under QEMU: the FPU is switched on, memory is set up, main runs, and its status ends the emulator. */
#include <stdint.h>
#include <stdlib.h>

extern uint32_t load_address, data_start, data_end, bss_start, bss_end, stack_top;
extern void initialise_monitor_handles(void);
int main(void);
void reset(void);
static void fault(void);

__attribute__((section(".vectors"), used)) static const void *const vectors[16] = {
    &stack_top, (const void *)reset, (const void *)fault, (const void *)fault, (const void *)fault, (const void *)fault,
    (const void *)fault,
};

static void fault(void)
{
    exit(99);
}

void _init(void)
{
}

void _fini(void)
{
}

void reset(void)
{
    volatile uint32_t *const coprocessor_access = (volatile uint32_t *)0xE000ED88U;
    const uint32_t *from = &load_address;
    *coprocessor_access |= 0xFU << 20;
    __asm volatile("dsb\n\tisb");
    for (uint32_t *to = &data_start; to < &data_end; to++) {
        *to = *from++;
    }
    for (uint32_t *to = &bss_start; to < &bss_end; to++) {
        *to = 0U;
    }
    initialise_monitor_handles();
    exit(main());
}
