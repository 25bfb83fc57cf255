// Chooses the tier at run time.
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#include "cpu/tier.h"

namespace gpudedup {

extern const Tier tier_baseline;
#if defined(GPUDEDUP_X86_TIERS)
extern const Tier tier_avx2;
extern const Tier tier_avx512;
#endif

namespace {

struct Choice {
  const Tier* tier;
  bool runs_here;
};

/// All tiers that were built, best first.
const Choice* choices() {
#if defined(GPUDEDUP_X86_TIERS)
  static const Choice all[] = {{&tier_avx512, __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                                                  __builtin_cpu_supports("avx512bw") &&
                                                  __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("bmi2")},
                               {&tier_avx2, __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi2")},
                               {&tier_baseline, true},
                               {nullptr, false}};
#else
  static const Choice all[] = {{&tier_baseline, true}, {nullptr, false}};
#endif
  return all;
}

}  // namespace

const char* available_tiers() {
  static const std::string names = [] {
    std::string joined;
    for (const Choice* choice = choices(); choice->tier; ++choice)
      if (choice->runs_here) joined += (joined.empty() ? "" : " ") + std::string(choice->tier->name);
    return joined;
  }();
  return names.c_str();
}

const Tier& tier() {
  const char* wanted = std::getenv("GPUDEDUP_CPU");
  for (const Choice* choice = choices(); choice->tier; ++choice)
    if (choice->runs_here && (!wanted || !*wanted || std::strcmp(wanted, choice->tier->name) == 0))
      return *choice->tier;
  throw std::invalid_argument(std::string("GPUDEDUP_CPU=") + wanted + " is not a CPU tier of this machine; it has " +
                              available_tiers());
}

}  // namespace gpudedup
