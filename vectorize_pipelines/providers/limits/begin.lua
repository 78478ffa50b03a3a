-- Counts a call from a while from now, since it begins by then, and later than its key was lent. Returns the time. Times
-- are microseconds of the server's clock. KEYS: as in acquire.lua. ARGV: salt, id of the key, lease, tokens, the while.
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
if redis.call('GET', KEYS[1]) == ARGV[1] then -- else the state was begun again, and knows of no call
  local uses = string.sub(KEYS[1], 1, -5) .. 'uses:' .. ARGV[2]
  redis.call('ZADD', uses, 'XX', now + ARGV[5], ARGV[3] .. ':' .. ARGV[4])
end
return now
