/* Prints what NAME_act costs and what it computes: "instructions N", "stack N", then the actions' bytes in hexadecimal.
 * With `-icount shift=0` QEMU counts a nanosecond per instruction, and SysTick counts at 25 MHz. */
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "policy.h"
#include "observations.h"

#define CALLS 100U
#define NANOSECONDS_PER_TICK 40U
#define PAINTED 4096U

static volatile uint32_t *const control = (volatile uint32_t *)0xE000E010U;
static volatile uint32_t *const reload = (volatile uint32_t *)0xE000E014U;
static volatile uint32_t *const current = (volatile uint32_t *)0xE000E018U;

typedef int32_t act_function(const float *observation, ACTION *action);

/* As the policy's function is called, without doing anything. */
static int32_t __attribute__((noinline)) nothing(const float *observation, ACTION *action)
{
    __asm volatile("" : : "r"(observation), "r"(action) : "memory");
    return 0;
}

static uint32_t __attribute__((noinline)) ticks(act_function *volatile act)
{
    ACTION action[POLICY_ACTION_SIZE];
    const uint32_t start = *current;
    for (uint32_t i = 0U; i < CALLS; i++) {
        (void)act(observations[i % OBSERVATIONS], action);
    }
    return (start - *current) & 0x00FFFFFFU;
}

/* Bytes below the caller's frame that the function writes to. */
static uint32_t __attribute__((noinline)) stack(act_function *volatile act)
{
    static ACTION action[POLICY_ACTION_SIZE];
    volatile uint8_t *const top = (volatile uint8_t *)__builtin_frame_address(0) - 64;
    uint32_t untouched = 0U;
    for (uint32_t i = 0U; i < PAINTED; i++) {
        top[-(int32_t)i] = 0xA5U;
    }
    (void)act(observations[0], action);
    while ((untouched < PAINTED) && (top[-(int32_t)(PAINTED - 1U - untouched)] == 0xA5U)) {
        untouched++;
    }
    return PAINTED - untouched;
}

#ifdef TRACE
int main(void)
{
    ACTION action[POLICY_ACTION_SIZE];
    /* An observation is in RAM, as that of a device is. */
    float observation[sizeof observations[0] / sizeof(float)];
    for (uint32_t i = 0U; i < TRACE; i++) {
        (void)memcpy(observation, observations[i], sizeof observation);
        (void)policy_act(observation, action);
    }
    return 0;
}
#else
int main(void)
{
    uint32_t busy;
    uint32_t idle;
    *reload = 0x00FFFFFFU;
    *current = 0U;
    *control = 5U;
    busy = ticks(policy_act);
    idle = ticks(nothing);
    printf("instructions %lu\n", (unsigned long)(((busy - idle) * NANOSECONDS_PER_TICK) / CALLS));
    printf("stack %ld\n", (long)stack(policy_act) - (long)stack(nothing));
    for (uint32_t i = 0U; i < OBSERVATIONS; i++) {
        ACTION action[POLICY_ACTION_SIZE];
        const uint8_t *const bytes = (const uint8_t *)action;
        (void)policy_act(observations[i], action);
        for (uint32_t j = 0U; j < sizeof action; j++) {
            printf("%02x", bytes[j]);
        }
        printf("\n");
    }
    return 0;
}
#endif
