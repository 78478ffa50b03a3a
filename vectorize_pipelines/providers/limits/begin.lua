-- Counts a call from a while from now, since it begins by then, and later than its key was lent. Returns the time; nil,
-- with the loan taken back, where the windows have no room for it then, or the loan has ended. Times are microseconds of
-- the server's clock. KEYS: as in acquire.lua. ARGV: salt, id of the key, lease, tokens, the while, length of the long
-- window, limits of the key as in acquire.lua.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return nil end -- the state was begun again, and knows of no call
local prefix = string.sub(KEYS[1], 1, -5) -- without `salt`
local id, lease, need, long = ARGV[2], ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[6])
local _, qps, rpm, tpm, _, second = struct.unpack('>dddddd', ARGV[7])
if rpm < 0 and tpm < 0 then long = second end
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local latest = now + ARGV[5]
local uses, leases, use = prefix .. 'uses:' .. id, prefix .. 'leases:' .. id, lease .. ':' .. need

local ends, counted = redis.call('ZSCORE', leases, lease), redis.call('ZSCORE', uses, use)
local times, tokens, ones = {}, {}, {}
local others = redis.call('ZRANGEBYSCORE', uses, string.format('(%.0f', now - long), '+inf', 'WITHSCORES')
for i = 1, #others, 2 do
  if others[i] ~= use then
    times[#times + 1], ones[#ones + 1] = tonumber(others[i + 1]), 1
    tokens[#tokens + 1] = tonumber(string.match(others[i], '%d+$'))
  end
end

local function fits(limit, window, amounts, own) -- in every window with a call that begins between now and `latest`
  if limit < 0 then return true end
  local total, last = own, 1
  for first = 1, #times do
    while last <= #times and math.max(times[last], now) - math.min(times[first], latest) < window do
      total = total + amounts[last]
      last = last + 1
    end
    if total > limit then return false end
    if last > first then total = total - amounts[first] else last = first + 1 end
  end
  return true
end

if counted and ends and tonumber(ends) > now
  and fits(qps, second, ones, 1) and fits(rpm, long, ones, 1) and fits(tpm, long, tokens, need) then
  redis.call('ZADD', uses, latest, use)
  return now
end
redis.call('ZREM', leases, lease)
redis.call('DEL', prefix .. 'loan:' .. lease)
if counted then
  redis.call('ZREM', uses, use)
  redis.call('HINCRBY', prefix .. 'calls', id, -1)
  if need > 0 then redis.call('HINCRBY', prefix .. 'tokens', id, -need) end
end
return nil
